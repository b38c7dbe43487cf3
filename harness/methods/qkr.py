"""Query-key reparametrization (QKR). Liu, Liu, Cheng, ICML 2023 (arXiv 2302.02210, "Oscillation-free Quantization for
Low-bit Vision Transformers", OFQ), with the authors' code.

A logit depends on the product of two weights, so where these are quantized apart, each oscillates with the other.
Each head h of H, with d features of its own, therefore gets one matrix in place of two, and that one is quantized:

    W_h = W_q^h^T W_k^h (C, C),   logits_ij = x_i^T W^_h x_j / sqrt(d),   W^ = q( [W_1; ...; W_H] ) (H C, C),

x_i (C,) the tokens that enter the attention; then softmax and values as before. The product is made anew in every
forward pass, H C^2 d multiplications, from W_q and W_k, (H d, C) each, which the optimizer and its weight decay go on
seeing. Row i of block h belongs to feature i of the token that asks; a quantizer per channel has a step for each of
these H C rows. Applying W^ costs H / 2 times what queries and keys did, and the logits C / d times.

`prepare` replaces each fused `<attention>.qkv` by `<attention>.qkv.qk`, a layer with weight (2 H d, C), W_q over W_k,
and the products in its slot weight_transform, and `<attention>.qkv.v`, weight and bias of the values. By these names
a layer still lies under `qkv`, where a glob that names `qkv` leaves the whole attention as it is, while one that names
a part, which is not there yet, is refused. Whatever reads effective weights works on (H C, C): quantizers that later
methods put into the slot ([qkr, ste], [qkr, lsq]), regularizers, the tracker, deployment. Alone, the network trains in
float in this form and W is rounded to nearest, at any bit-width, so it needs no target_bit. A deployed network holds
W^ itself, H / 2 times the weights of queries and keys. best.safetensors holds W_q and W_k.

Stacks: before all methods that are not of its kind, since they would hold on to layers that it replaces. Refused: a
filled slot of `qkv`, attention whose products another method exposed, norms of queries or keys, a shared `qkv`. After
it, what wants the slot weight_transform (`satnl`), and `oscillation`, whose closed form would act on W_q and W_k.
Products of weights from scratch are small, and so are steps learned of them: `lsq` then wants a step_learning_rate well
below 1 (digits, 3 bits, a step per channel: 38 % with 0.01, 19 % with 1).
Works on timm's ViT attention (masks, gates, dropout and all) and on TinyViT's, where x are the normalised tokens and
the relative biases are added to the logits.

Biases: those of queries and keys are dropped. A bias of keys adds the same to all logits of a row, which softmax does
not see. One of queries adds b_q . k_j to column j: without it a network that had one, as published ones have, starts
as another function (from scratch biases start at 0). Without quantizers all else equals attention as it was.

There are no settings. Deviations: weights only, while the paper also quantizes x, W^_h x (between two learned biases)
and what softmax gives, and distils from the float network. Its quantizer, StatsQ, is a method of its own. The paper has
no TinyViT.
"""

from typing import Any, Literal

from torch import nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.attention import attentions
from harness.quantization.bilinear_attention import check_joinable, join_queries_and_keys
from harness.quantization.layers import weight_layers


class QueryKeyReparametrization(Method):
    """Joins queries and keys of each head in one matrix, which is what gets quantized."""

    kind, acts_on = "reparametrization", "query-key products"

    needs_target_bit = False
    replaces_layers = True
    requires = ("attention",)

    class Config(MethodConfig):
        name: Literal["qkr"] = "qkr"

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        chosen = self._chosen(model)
        for name, attention in chosen.items():  # all of them, before anything changes
            check_joinable(name, attention)
            if _uses(model, attention.qkv.weight) > 1:
                raise UserError(f"methods: 'qkr' would part the qkv layer of attention {name!r} from what shares it")
        for attention in chosen.values():
            join_queries_and_keys(attention)

    def _chosen(self, model: nn.Module) -> dict[str, Any]:
        """The attentions, by name, whose `qkv` is not excluded."""
        layers = {id(layer) for layer in weight_layers(model, self.context.exclude).values()}
        found: dict[str, Any] = attentions(model)
        chosen = {name: attention for name, attention in found.items() if id(attention.qkv) in layers}
        if not chosen:
            raise UserError(
                f"methods: 'qkr' finds no attention to work on: of {len(found)} whose products can be reached, every "
                "qkv layer is excluded"
            )
        return chosen


def _uses(model: nn.Module, weight: nn.Parameter) -> int:
    """At how many places of a model a weight is."""
    return sum(each is weight for _, each in model.named_parameters(remove_duplicate=False))
