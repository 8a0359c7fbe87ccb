"""Nodes of the pack: the only code that knows ComfyUI."""

from .compare_grid import CompareGrid
from .evaluate_video import EvaluateVideo
from .inspect_lora import InspectLoRA
from .layer_probe import LayerProbeNode
from .load_encoders import LoadDINOv2, LoadSAM, LoadSEARAFT
from .load_miniature import LoadMiniature
from .load_motion_clip import LoadMotionClip
from .load_subject_clips import LoadSubjectClips
from .load_subject_folder import LoadSubjectFolder
from .loader_options import LoaderOptionsNode
from .loss_options import LossOptionsNode
from .noise_range import NoiseRangeNode
from .optimizer_options import OptimizerOptionsNode
from .preview_flow import PreviewOpticalFlow
from .save_grid_cell import SaveGridCell
from .segment_subject import SegmentSubject
from .show_report import ShowReport
from .sparse_lora_loader import SparseLoRALoader
from .sparse_lora_pair_loader import SparseLoRAPairLoader
from .strength_options import StrengthOptionsNode
from .t_point_scheduler import TPointScheduler
from .train_motion_lora import TrainMotionLoRA
from .train_subject_lora import TrainSubjectLoRA
from .training_options import TrainingOptionsNode
from .write_grid_report import WriteGridReport

# A plain table with final ids: static checkers read it without running anything.
NODE_CLASS_MAPPINGS = {
    "SMRATrainSubjectLoRA": TrainSubjectLoRA,
    "SMRATrainMotionLoRA": TrainMotionLoRA,
    "SMRATrainingOptions": TrainingOptionsNode,
    "SMRALossOptions": LossOptionsNode,
    "SMRANoiseRange": NoiseRangeNode,
    "SMRAOptimizerOptions": OptimizerOptionsNode,
    "SMRASparseLoRALoader": SparseLoRALoader,
    "SMRASparseLoRAPairLoader": SparseLoRAPairLoader,
    "SMRATPointScheduler": TPointScheduler,
    "SMRALoaderOptions": LoaderOptionsNode,
    "SMRAStrengthOptions": StrengthOptionsNode,
    "SMRALoadDINOv2": LoadDINOv2,
    "SMRALoadSEARAFT": LoadSEARAFT,
    "SMRALoadSAM": LoadSAM,
    "SMRALoadMiniature": LoadMiniature,
    "SMRALoadSubjectFolder": LoadSubjectFolder,
    "SMRALoadSubjectClips": LoadSubjectClips,
    "SMRALoadMotionClip": LoadMotionClip,
    "SMRASegmentSubject": SegmentSubject,
    "SMRAPreviewOpticalFlow": PreviewOpticalFlow,
    "SMRAInspectLoRA": InspectLoRA,
    "SMRAEvaluateVideo": EvaluateVideo,
    "SMRACompareGrid": CompareGrid,
    "SMRASaveGridCell": SaveGridCell,
    "SMRAWriteGridReport": WriteGridReport,
    "SMRAShowReport": ShowReport,
    "SMRALayerProbe": LayerProbeNode,
}
