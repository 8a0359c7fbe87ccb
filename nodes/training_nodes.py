"""The nodes around training, by their final ids."""

from .inspect_lora import InspectLoRA
from .load_data import LoadMotionClip, LoadSubjectFolder
from .load_teachers import LoadDINOv2, LoadSAM, LoadSEARAFT
from .preview_flow import PreviewOpticalFlow
from .segment_subject import SegmentSubject
from .train_motion_lora import TrainMotionLoRA
from .train_subject_lora import TrainSubjectLoRA

TRAINING_NODES = {
    "SMRATrainSubjectLoRA": TrainSubjectLoRA,
    "SMRATrainMotionLoRA": TrainMotionLoRA,
    "SMRALoadDINOv2": LoadDINOv2,
    "SMRALoadSEARAFT": LoadSEARAFT,
    "SMRALoadSAM": LoadSAM,
    "SMRASegmentSubject": SegmentSubject,
    "SMRAPreviewOpticalFlow": PreviewOpticalFlow,
    "SMRALoadSubjectFolder": LoadSubjectFolder,
    "SMRALoadMotionClip": LoadMotionClip,
    "SMRAInspectLoRA": InspectLoRA,
}
