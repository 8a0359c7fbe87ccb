"""The nodes around training, by their final ids."""

from .load_teachers import LoadDINOv2, LoadSAM, LoadSEARAFT
from .train_motion_lora import TrainMotionLoRA
from .train_subject_lora import TrainSubjectLoRA

TRAINING_NODES = {
    "SMRATrainSubjectLoRA": TrainSubjectLoRA,
    "SMRATrainMotionLoRA": TrainMotionLoRA,
    "SMRALoadDINOv2": LoadDINOv2,
    "SMRALoadSEARAFT": LoadSEARAFT,
    "SMRALoadSAM": LoadSAM,
}
