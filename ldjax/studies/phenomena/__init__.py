"""The paper's phenomena of finetuning, measured through the exact kernel.

On the toy world, for each of some seeds, from one run of SFT:

* hallucination: which training pairs lift another prompt's answer, to first order;
* fingerprint: how alike texts are for the base model, by who wrote them;
* repeater: what a long DPO does to y* and to free-running samples;
* longer_sft: the same DPO after SFT of several lengths;
* on_policy: DPO on pairs from a valley, off-policy and on-policy, at an equal budget.

Each has its claims, which were fixed before the first run and are stated in its
module. A claim is held if it is true under every seed, refuted if
under none; else it depends. Most say which of two numbers is larger: where there is no
difference, three seeds agree in one case of four, half of which are "held".

Exit status 1 if a claim is not held, or an identity does not hold: the terms of all
training pairs sum to the change that they explain; what the kernel's factors make of a
token's residual is the derivative along its step; the kernel of two texts is that of
the same two the other way round, transposed; no alignment is above 1.

    python experiments/phenomena.py --out runs/phenomena      (toy world; ~40 min)
    python experiments/phenomena.py --only hallucination,fingerprint --seeds 0

Found, under three seeds: hallucination held (the answer's own pair is the largest term
of 78 to 100 % of texts; irr_train +20 to +26 nats, irr_test +5 to +11); fingerprint
held; repeater: y* stays refuted, repetition refuted, malformed samples held; longer SFT
and on-policy depend.
"""

__all__: list[str] = []
