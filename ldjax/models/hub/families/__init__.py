"""The `config.json` of each family, both ways; `FAMILIES` is all of them."""

from ldjax.models.hub.families.gemma import GEMMA2, GEMMA3
from ldjax.models.hub.families.gpt import GPT2, NEOX
from ldjax.models.hub.families.llama import LLAMA
from ldjax.models.hub.families.mistral import MISTRAL
from ldjax.models.hub.families.olmo import OLMO2, OLMO3
from ldjax.models.hub.families.phi import PHI3
from ldjax.models.hub.families.qwen import QWEN2, QWEN3
from ldjax.models.hub.families.record import Family
from ldjax.models.hub.families.smollm import SMOLLM3

__all__ = ["FAMILIES", "Family"]

#: By `model_type`.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(GPT2, NEOX, LLAMA, QWEN2, QWEN3, MISTRAL),
        *(SMOLLM3, PHI3, OLMO2, OLMO3, GEMMA2, GEMMA3),
    )
}
