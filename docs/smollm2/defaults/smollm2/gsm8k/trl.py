from peft import PeftConfig
from trl import SFTConfig

# Lora: the file beside this one is PEFT's own format.
peft_config = PeftConfig.from_pretrained(".")

# The effective batch: on several devices, or with accumulation, divide it.
training_args = SFTConfig(
    learning_rate=0.0003,
    num_train_epochs=1.0,
    per_device_train_batch_size=8,
    lr_scheduler_type='cosine',
    warmup_steps=1,
    weight_decay=0.0,
    max_grad_norm=1.0,
    adam_beta1=0.9,
    adam_beta2=0.999,
    adam_epsilon=1e-08,
    max_length=384,
    completion_only_loss=True,
    seed=0,
)
