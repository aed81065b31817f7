"""Files of models made for other programs, told by their endings, and what to say about them."""

from __future__ import annotations

from engines.models.contents import listed

OTHER_KINDS = {
    ".gguf": "a GGUF model (llama.cpp)",
    ".ggml": "a GGML model (llama.cpp)",
    ".llamafile": "a llamafile",
    ".onnx": "an ONNX graph without genai_config.json",
    ".h5": "TensorFlow weights",
    ".msgpack": "Flax weights",
    ".tflite": "a TensorFlow Lite model",
    ".task": "a MediaPipe model",
    ".litertlm": "a LiteRT-LM model",
    ".mlmodel": "a Core ML model",
    ".engine": "a TensorRT engine",
    ".pte": "an ExecuTorch program",
    ".mnn": "an MNN model",
    ".rkllm": "an RKLLM model (Rockchip)",
    ".nemo": "a NeMo checkpoint",
    ".npz": "NumPy weights (MLX or older)",
    ".keras": "a Keras model",
    ".pt": "PyTorch weights",
    ".pth": "PyTorch weights",
    ".ckpt": "PyTorch weights",
}


def other_problem(name: str, what: str, files: list[str]) -> str:
    return (
        f"{name} is {what} ({listed(files)}): it holds none of the files this app can use, which are *.safetensors "
        "with config.json, openvino_model.xml, or genai_config.json."
    )


def other_remedy(what: str) -> str:
    if "ONNX" in what:
        return (
            "Choose the original weights: ONNX Runtime GenAI needs a folder made by its own model builder, "
            "which this app runs for you."
        )
    return "Choose the original model (*.safetensors); what each engine needs is made from it here."
