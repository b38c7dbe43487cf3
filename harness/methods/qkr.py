"""Query-key reparametrization (QKR). Liu, Liu, Cheng, ICML 2023 (arXiv 2302.02210, "Oscillation-free Quantization for
Low-bit Vision Transformers", OFQ), with the authors' code.

An attention logit depends on the product of two weights. If these are quantized separately, each oscillates with the
other. So each of the H heads, with d features, gets one matrix in place of two, and that matrix is quantized.

Equations. For tokens x_i (C,) that enter the attention:

    W_h = W_q^h^T W_k^h (C, C),   logits_ij = x_i^T W^_h x_j / sqrt(d),   W^ = q( [W_1; ...; W_H] ) (H C, C).

Softmax and values follow as before. W_q and W_k, (H d, C) each, remain the trained parameters: the optimizer and its
weight decay act on them. The products are computed in every forward pass, H C^2 d multiplications. Row i of block h
belongs to feature i of the query token; a per-channel quantizer has one step for each of the H C rows. Applying W^
costs H / 2 times as much as queries and keys did, and the logits C / d times as much.

Layers: `prepare` replaces each fused `<attention>.qkv` by two layers. `<attention>.qkv.qk` has the weight (2 H d, C),
W_q over W_k, and computes the products in its slot weight_transform. `<attention>.qkv.v` has weight and bias of the
values. A glob in `exclude` that matches `qkv` leaves the whole attention as it is; one that names a part is refused,
since the parts do not exist when it is read. All that reads effective weights works on (H C, C): quantizers of later
methods ([qkr, ste], [qkr, lsq]), regularizers, the tracker, deployment. It supports timm's ViT attention (with masks,
gates and dropout) and TinyViT's, where x are the normalised tokens and the relative biases are added to the logits.

Deployment: a deployed network holds W^ itself, H / 2 times the weights of queries and keys; best.safetensors holds W_q
and W_k. Used alone, the network trains in float in this form, and W is rounded to nearest. That works at any
bit-width, so no target_bit is needed.

Stacks: it comes before all methods that do not replace layers, since these would keep references to the replaced ones.
Refused: a filled slot of `qkv`, an attention whose products another method exposed, norms of queries or keys, a shared
`qkv`. Refused after it: a method that fills weight_transform (`satnl`), and `oscillation`, whose closed form would act
on W_q and W_k. Products of weights from scratch are small, and so are the steps learned for them: `lsq` then needs a
step_learning_rate well below 1 (digits, 3 bits, per channel: 38 % with 0.01, 19 % with 1).

Biases: those of queries and keys are dropped. A key bias adds the same value to all logits of a row, which softmax
cancels. A query bias adds b_q . k_j to column j, so a network that had one, as published ones do, does not start as the
same function (from scratch, biases start at 0). Apart from that, without quantizers the attention is unchanged.

Activations, with a target such as w4a4: the other method of the stack rounds them ([qkr, statsq, cga]: learned steps):
x as it enters W^_h and again as it meets W^_h x, then W^_h x, the output of softmax, and the values.

Settings: none.

Deviations: no biases around W^_h x and the values, no distillation from the float network. The paper's quantizer,
StatsQ, is a separate method here. The paper has no TinyViT.
"""

from typing import Any, Literal

from torch import nn

from harness.core.errors import UserError
from harness.methods.base import Calibration, Method, MethodConfig
from harness.quantization.attention import attentions
from harness.quantization.bilinear_attention import check_joinable, join_queries_and_keys
from harness.quantization.layers import weight_layers


class QueryKeyReparametrization(Method):
    """Joins queries and keys of each head in one matrix, and quantizes that."""

    kind, acts_on = "reparametrization", "query-key products"

    needs_target_bit = False
    replaces_layers = True
    requires = ("attention",)

    class Config(MethodConfig):
        name: Literal["qkr"] = "qkr"

    config: Config

    def prepare(self, model: nn.Module, calibration: Calibration) -> None:
        chosen = self._chosen(model)
        for name, attention in chosen.items():  # check all before changing any
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
    """How often a model uses a weight."""
    return sum(each is weight for _, each in model.named_parameters(remove_duplicate=False))
