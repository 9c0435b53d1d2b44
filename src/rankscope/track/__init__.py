"""A study in somebody's experiment tracker, while it runs: TensorBoard, Weights & Biases, MLflow or Trackio."""
