"""The kernels of `benchmarks.ntk` by `torch.func`, in a process of their own.

Jacobians example by example (`vmap(jacrev(...))`), then one contraction for each
parameter, as torch's own tutorial has it.
"""

# torch is optional (`pip install torch`), and absent where the types are checked.
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from experiments.benchmarks.ntk.process import Timed, serve_kernel

__all__ = ["NETWORKS", "prepare"]

Params = dict[str, Any]
Network = Callable[..., Any]


def prepare(
    network: str, params: Params, inputs: Any, static: dict[str, Any]
) -> tuple[Timed, None]:
    """The kernel of a network as a matrix.

    Args:
      network: A name of `NETWORKS`.
      params: Parameters by their path, as ours are.
      inputs: Of the probe side and of the update side.
      static: What the network is told besides.
    """
    import torch

    torch.set_num_threads(len(psutil.Process().cpu_affinity()))
    tensors = {name: _tensor(value) for name, value in params.items()}
    arguments = (tensors, *(torch.tensor(x) for x in inputs))
    kernel = kernel_fn(lambda p, x: NETWORKS[network](p, x, **static))
    # What torch loads when it is first used is not the kernel's memory.
    kernel_fn(lambda params, x: x @ params["w"])(
        {"w": torch.eye(2)}, *torch.ones(2, 1, 2)
    )
    return Timed(lambda: kernel(*arguments)), None


def kernel_fn(network: Network) -> Callable[..., Any]:
    """`(params, probe, update) -> [probe outputs, update outputs]`."""
    import torch

    def jacobian(params: Params, inputs: Any) -> Params:
        single = lambda params, x: network(params, x[None]).flatten()
        return torch.func.vmap(torch.func.jacrev(single), (None, 0))(params, inputs)

    def kernel(params: Params, probe: Any, update: Any) -> Any:
        left, right = jacobian(params, probe), jacobian(params, update)
        total = 0
        for name in params:
            rows, columns = (j[name].flatten(0, 1).flatten(1) for j in (left, right))
            total = total + torch.einsum("np,mp->nm", rows, columns)
        return total

    return kernel


def _tensor(value: np.ndarray) -> Any:
    """A parameter; the axes of convolutions in torch's order."""
    import torch

    is_convolution = value.ndim == 4
    return torch.tensor(value.transpose(3, 2, 0, 1) if is_convolution else value)


def fully_connected(params: Params, x: Any) -> Any:
    """Case A, and C after flattening."""
    x = x.flatten(1)
    last = sum(name.endswith("kernel") for name in params) - 1
    for i in range(last):
        x = _dense(params, f"Dense_{i}", x).relu()
    return _dense(params, f"Dense_{last}", x)


def conv_net(params: Params, x: Any) -> Any:
    """Case B."""
    x = x.movedim(-1, 1)
    for i in range(3):
        x = _conv(params, f"Conv_{i}", x).relu()
    return _dense(params, "Dense_0", x.movedim(1, -1).flatten(1))


def lenet(params: Params, x: Any) -> Any:
    """LeNet; channels run fastest where it is flattened, as in ours."""
    from torch.nn.functional import avg_pool2d

    x = avg_pool2d(_conv(params, "Conv_0", x[:, None], padding=2).tanh(), 2)
    x = avg_pool2d(_conv(params, "Conv_1", x).tanh(), 2)
    x = x.movedim(1, -1).flatten(1)
    x = _dense(params, "Dense_0", x).tanh()
    x = _dense(params, "Dense_1", x).tanh()
    return _dense(params, "Dense_2", x)


def gpt2(
    params: Params,
    tokens: Any,
    *,
    num_layers: int,
    num_heads: int,
    epsilon: float,
    positions: tuple[int, ...],
) -> Any:
    """A decoder of GPT-2's architecture, with a tied head."""
    import torch
    from torch.nn.functional import gelu, layer_norm

    def norm(name: str, x: Any) -> Any:
        scale, bias = params[f"{name}.scale"], params[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], scale, bias, epsilon)

    def attention(name: str, x: Any) -> Any:
        query, key, value = (
            _dense(params, f"{name}.{kind}", x)
            .unflatten(-1, (num_heads, -1))
            .transpose(1, 2)
            for kind in ("query", "key", "value")
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        weights = scores.masked_fill(~causal, float("-inf")).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return _dense(params, f"{name}.out", mixed)

    table = params["token_embedding.embedding"]
    places = params["position_embedding.embedding"][: tokens.shape[1]]
    x = table[tokens] + places
    for block in (f"blocks_{i}" for i in range(num_layers)):
        x = x + attention(f"{block}.attention", norm(f"{block}.attention_norm", x))
        inner = _dense(params, f"{block}.mlp.up", norm(f"{block}.mlp_norm", x))
        x = x + _dense(params, f"{block}.mlp.down", gelu(inner, approximate="tanh"))
    return norm("final_norm", x)[:, list(positions)] @ table.T


def _dense(params: Params, name: str, x: Any) -> Any:
    return x @ params[f"{name}.kernel"] + params[f"{name}.bias"]


def _conv(params: Params, name: str, x: Any, padding: int = 0) -> Any:
    from torch.nn.functional import conv2d

    kernel, bias = params[f"{name}.kernel"], params[f"{name}.bias"]
    return conv2d(x, kernel, bias, padding=padding)


NETWORKS: dict[str, Network] = {
    "A": fully_connected,
    "B": conv_net,
    "C": fully_connected,
    "D": gpt2,
    "LeNet": lenet,
}


if __name__ == "__main__":
    serve_kernel(prepare)
