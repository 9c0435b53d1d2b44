"""The derive stage: models made of trained ones without training, and what they score."""
