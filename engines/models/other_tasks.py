"""Which checkpoints do something else than write text, told by the architecture that their config.json names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OTHER_TASKS = (
    # (end of the architecture's name, what it is, what it does)
    (r"For(MaskedLM|PreTraining)$", "an encoder", "it fills gaps in a text"),
    (
        r"For(Sequence|Token|Image|Audio|Video)?Classification$",
        "a classifier or reward model",
        "it gives scores",
    ),
    (
        r"For(QuestionAnswering|MultipleChoice|NextSentencePrediction)$",
        "an encoder",
        "it points at parts of a text",
    ),
    (r"For(SpeechSeq2Seq|CTC|AudioFrameClassification|XVector)$", "a speech model", "it reads sound"),
    (
        r"For(ObjectDetection|.*Segmentation|DepthEstimation|MaskedImageModeling|KeypointDetection)$",
        "a vision model",
        "it reads pictures",
    ),
    (r"(RewardModel|ForRewardModeling|ForProcessRewardModel|ForScore)$", "a reward model", "it gives scores"),
    (r"(Vision|CLIP|Siglip2?|ViT|DINOv?2?)\w*Model$", "a vision model", "it reads pictures"),
    (r"(EncoderModel|DPR\w+Encoder|SentenceTransformer)$", "an encoder", "it turns text into vectors"),
)
_WRITES_TEXT = re.compile(r"(CausalLM|LMHeadModel)\w*$")


def other_task(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a model for another task than chatting is and does; None for one that writes text or is not known."""
    name = next(iter(config.get("architectures") or ()), None)
    name = name if isinstance(name, str) else ""
    if _WRITES_TEXT.search(name) or "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        return None
    for pattern, what, does in _OTHER_TASKS:
        if re.search(pattern, name):
            return what, f"{does} ({name})"
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder model", f"it translates or summarises ({name or 'is_encoder_decoder'})"
    if name.endswith("ForConditionalGeneration") and not isinstance(config.get("text_config"), dict):
        if not (config.get("vision_config") or config.get("audio_config")):
            return None
        return "a multimodal model", f"it reads pictures or sound ({name})"
    if name.endswith("Model") and config.get("vision_config") and config.get("text_config"):
        return "a vision model", f"it matches pictures and text ({name})"
    if name.endswith("Model"):
        return "an encoder or embedding model", f"it has no output layer for words ({name})"
    return None


def reads_images(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has a part for pictures or sound beside its text."""
    parts = (
        "vision_config",
        "audio_config",
        "vision_tower_config",
        "img_processor",
        "embd_layer",
        "audio_processor",
    )
    return any(config.get(part) for part in parts)
