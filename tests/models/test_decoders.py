"""Decoders of transformers: decoding with a cache is one masked pass, and what of them is quantized."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.core.errors import UserError
from harness.models import build_model
from harness.models._decoder import ATTENTION, attend, decoded
from harness.quantization.attention import expose_attention_products
from harness.quantization.audit import EXCLUDED, FLOAT, QUANTIZED, audit
from harness.quantization.layers import QuantMatMul
from harness.training.config import component

LLAMA = {"name": "llama", "layers": 2, "width": 32, "heads": 4, "kv_heads": 2}
TOKENS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


def built(settings: dict[str, Any] = LLAMA, context: int = 9, outputs: int = 11, seed: int = 0) -> Any:
    return build_model(component("model", settings), (context,), outputs, seed).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with tied embeddings and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=12, max_position_embeddings=16, tie_word_embeddings=True, **sizes)
    )
    network.save_pretrained(place)
    words = Tokenizer(models.WordLevel({"?": 0, "to": 1, "be": 2, "or": 3, "not": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(place)
    return place


@pytest.mark.parametrize("exposed", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_decoding_with_a_cache_is_one_masked_pass(kv_heads: int, exposed: bool) -> None:
    model = built({**LLAMA, "kv_heads": kv_heads})
    if exposed:
        assert expose_attention_products(model) == 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)  # so that attention is not nearly uniform
        whole = model(TOKENS)
    torch.testing.assert_close(decoded(model, TOKENS), whole, atol=1e-5, rtol=1e-5)
    assert (whole[0, 1:] - whole[0, :-1]).abs().max() > 0.1


def test_logits_are_those_of_transformers() -> None:
    from transformers import LlamaForCausalLM

    model = built()
    sizes = model.config.__class__.from_dict(model.config.to_dict())
    sizes._attn_implementation = "eager"
    plain = LlamaForCausalLM(sizes).eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        wanted = plain(TOKENS).logits
        torch.testing.assert_close(model(TOKENS), wanted, atol=1e-5, rtol=1e-5)
        expose_attention_products(model)
        torch.testing.assert_close(model(TOKENS), wanted, atol=1e-5, rtol=1e-5)
    assert sum(isinstance(module, QuantMatMul) for module in model.modules()) == 4
    assert model.config._attn_implementation == ATTENTION


def test_a_token_depends_on_none_that_follows() -> None:
    model, other = built(), TOKENS.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    with torch.no_grad():
        one, two = model(TOKENS), model(other)
    torch.testing.assert_close(one[:, :5], two[:, :5])
    assert (one[:, 5:] - two[:, 5:]).abs().amin((0, 2)).max() > 0


def test_attention_that_is_not_causal_sees_all_tokens() -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    found = attend(nn.Module(), query, key, value, None, is_causal=False)[0]
    wanted = nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found.transpose(1, 2), wanted)


def test_linear_layers_are_quantized_and_embeddings_and_norms_stay_float() -> None:
    model = built().train()
    found = audit(model, TOKENS)
    found.check()
    layers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(found.named(QUANTIZED)) == layers
    assert {"lm_head.weight", "model.layers.0.self_attn.k_proj.weight"} <= layers
    assert set(found.named(FLOAT)) == {name for name, _ in model.named_parameters()} - layers
    assert "model.embed_tokens.weight" in found.named(FLOAT)
    assert audit(model, TOKENS, "lm_head").named(EXCLUDED) == ["lm_head.weight"]


def test_sizes_are_settings_and_weights_depend_on_the_seed() -> None:
    model = built({**LLAMA, "hidden": 40, "rope_theta": 500.0})
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (16, 32)
    assert shapes["model.layers.1.mlp.up_proj.weight"] == (40, 32)
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (11, 32)
    assert built().get_parameter("model.layers.0.mlp.up_proj.weight").shape == (96, 32)
    assert torch.equal(built(seed=1).lm_head.weight, built(seed=1).lm_head.weight)
    assert not torch.equal(built(seed=1).lm_head.weight, built(seed=2).lm_head.weight)
    with torch.no_grad():
        other = built({**LLAMA, "rope_theta": 5.0})
        assert not torch.allclose(built()(TOKENS), other(TOKENS))


def test_a_checkpoint_of_transformers(folder: Path) -> None:
    from transformers import LlamaForCausalLM

    model = built({"name": f"hf:{folder}"})
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), LlamaForCausalLM.from_pretrained(folder)(TOKENS).logits)
    assert model.lm_head.weight is not model.model.embed_tokens.weight, "one is quantized, the other is not"
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    audit(model, TOKENS).check()
    random = built({"name": f"hf:{folder}", "init": "scratch"})
    assert random.lm_head.weight.shape == (12, 32)
    assert not torch.equal(random.lm_head.weight, model.lm_head.weight)


def test_its_tokenizer_makes_tokens_of_text(folder: Path, tmp_path: Path) -> None:
    from harness import data

    (tmp_path / "text").write_text("to be or not to be " * 20)
    asked = {"name": "text", "root": str(tmp_path / "text"), "context": 4, "tokenizer": f"hf:{folder}"}
    found: Any = data.load_dataset(component("data set", asked), 0, "cpu")
    assert data.shape(component("data set", asked)) == (found.input_shape, found.outputs) == ((4,), 5)
    assert found.train.tokens[:7].tolist() == [1, 2, 3, 4, 1, 2, 1]
    data.check(component("data set", asked))
    with pytest.raises(UserError, match=r"data\.context: 30: val has 6 tokens, and one more than a window is needed"):
        data.check(component("data set", {**asked, "context": 30}))
    model = built({"name": f"hf:{folder}"}, context=4, outputs=5)
    assert model(found.train_batch(torch.arange(2))[0]).shape == (2, 4, 12)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"name": f"hf:{folder}"}
    with pytest.raises(UserError, match=r"data.context: 17: model 'hf:.*' has positions for 16 tokens"):
        built(settings, context=17)
    with pytest.raises(UserError, match=r"data.tokenizer: the text has 13 different tokens, and .* a vocabulary of 12"):
        built(settings, outputs=13)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"model 'hf:{tmp_path}' cannot be loaded \(ValueError: "):
        built({"name": f"hf:{tmp_path}"})
    monkeypatch.setattr("harness.core.extras.find_spec", lambda package: None)
    for name in ("llama", f"hf:{folder}"):
        with pytest.raises(UserError, match=rf"model '{name}' needs transformers: pip install .*harness\[language\]"):
            built({"name": name})


@pytest.mark.slow
def test_weights_outside_of_linear_layers_are_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=16, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layers? 'transformer.h.0.attn.c_attn', .* multiplies by a weight of its own"):
        audit(built({"name": f"hf:{tmp_path}"}), TOKENS).check()
