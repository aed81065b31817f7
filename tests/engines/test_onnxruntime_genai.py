"""What the engine itself knows about folders for ONNX Runtime GenAI."""

import pytest

from engines.onnxruntime_genai_engine import _right_context


@pytest.mark.parametrize(
    ("model", "config", "context"),
    [
        ({"type": "llama", "context_length": 8192}, {"sliding_window": 512}, 8192),
        ({"type": "llama"}, {"max_position_embeddings": 2048}, 2048),
        ({"type": "gemma2", "context_length": 8192}, {"sliding_window": 4096}, 4096),
        ({"type": "gemma2", "context_length": 512}, {"sliding_window": 16}, 16),
        ({"type": "gemma2", "context_length": 8192}, {}, 4096),  # a folder without config.json
        ({"type": "gemma2", "context_length": 2048}, {}, 2048),
        ({}, {}, None),
    ],
)
def test_gemma_2_is_used_within_its_window_where_the_builders_graph_is_the_model(model, config, context):
    assert _right_context({"model": model}, config) == context
