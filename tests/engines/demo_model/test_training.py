"""The training script: our Phi-3 equals the library's, and a short run learns and exports a loadable model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engines.demo_model import train as training
from engines.demo_model.architecture import SHAPE, VOCAB_SIZE, initial_parameters, logits
from engines.demo_model.corpus import training_conversations
from engines.demo_model.fake_quant import snapped
from engines.demo_model.packing import USER_WEIGHT, encode_conversation, pack
from engines.demo_model.vocabulary import train_tokenizer

TINY = SHAPE | {
    "hidden_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TINY |= {"intermediate_size": 128, "vocab_size": 512}


@pytest.fixture(scope="module")
def chats():
    return list(training_conversations(seed=1, count=150))


@pytest.fixture(scope="module")
def tokenizer(chats):
    return train_tokenizer((m.content for chat in chats for m in chat), TINY["vocab_size"])


@pytest.fixture(scope="module")
def documents(chats, tokenizer):
    return [encode_conversation(tokenizer, chat) for chat in chats]


def test_no_other_layer_is_as_wide_as_the_vocabulary():
    """ONNX Runtime's model builder takes any layer with vocab_size outputs for the lm_head (0.13.1)."""
    widths = {SHAPE["hidden_size"], 3 * SHAPE["hidden_size"], SHAPE["intermediate_size"]}
    assert VOCAB_SIZE not in widths | {2 * SHAPE["intermediate_size"]}


def test_only_the_assistants_words_count_fully(chats, documents):
    for chat, (ids, weights) in zip(chats, documents, strict=True):
        assert len(ids) == len(weights)
        assert set(weights) <= {0.0, USER_WEIGHT, 1.0}
        assert weights[-1] == 0.0  # the newline after the last end token
        assert weights[-2] == 1.0  # the end token itself is learned
        assert chat[-1].role == "assistant"


def test_packing_keeps_every_document_whole(documents):
    rows = pack(documents, seed=1)
    fitting = sum(len(ids) for ids, _ in documents if len(ids) <= 1024)
    packed = sum(int((r.documents > 0).sum()) for r in rows.values())
    assert packed >= fitting
    for length, r in rows.items():
        assert r.tokens.shape == r.weights.shape == r.documents.shape
        assert r.tokens.shape[1] == length


def test_documents_in_one_row_do_not_see_each_other():
    parameters = initial_parameters(TINY, seed=1)
    first, second = torch.arange(5, 25), torch.arange(30, 50)
    together = logits(parameters, torch.cat((first, second))[None], torch.tensor([[1] * 20 + [2] * 20]), TINY)
    alone = logits(parameters, second[None], torch.ones(1, 20), TINY)
    torch.testing.assert_close(together[:, 20:], alone, atol=1e-5, rtol=1e-4)


def test_a_few_steps_learn_and_the_export_loads(tmp_path, tokenizer, documents):
    lines = []
    rows = pack(documents, seed=1)
    parameters = training.train(rows, TINY, 8, compiled=False, report=lines.append)
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses, "the run reports its loss"
    assert losses[-1] < torch.log(torch.tensor(512.0))

    tokenizer.encode_special_tokens = False
    training.export(parameters, tokenizer, TINY, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(model).__name__ == "Phi3ForCausalLM"
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)("What is an NPU?")["input_ids"]])
    with torch.inference_mode():
        theirs = model(ids).logits
        ours = logits({n: p.float() for n, p in snapped(parameters).items()}, ids, torch.ones_like(ids), TINY)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_the_rate_warms_up_and_ends_at_zero():
    assert training.rate_factor(0, 1000) < training.rate_factor(29, 1000)
    assert training.rate_factor(30, 1000) == 1.0
    assert training.rate_factor(1000, 1000) == pytest.approx(0)
