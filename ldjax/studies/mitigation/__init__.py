r"""Remedies for the squeezing effect: extended SFT before DPO, and other losses.

The paper's remedy lifts the valley before pushing. Baseline: SFT on the chosen answers,
then DPO. Extend: SFT on the chosen and on the rejected ones, each a target of its own,
for as many epochs, so twice the updates, then the same DPO. Policies are kept after 2,
4 and 6 epochs of DPO. Then IPO, SimPO, RPO and gated DPO, at their defaults in
`ldjax.losses`, each from the baseline's SFT policy and compared with DPO after 4
epochs. Within a seed all share the base model, and after SFT the order of the pairs.

The judge of the toy world compares responses, sampled at temperature 1 with the same
key for all policies (and greedy ones beside them), to prompts that no policy is trained
on. All of them are answerable: the corpus of the base model files facts of every
entity, six in ten of them true. The 95 % interval of a seed is over prompts, its
policies being those that there are. That of all seeds is over seeds (Student's, of
their rates), as another seed makes other policies: of three seeds it is wide.

Claims, checked on full runs (exit status 1 if one does not hold for most seeds): the
published signatures EXT1 (extended SFT lifts rejected more, chosen less, and keeps the
margin smaller), EXT2 (DPO after it costs chosen, rejected and the mean of all types
less) and EXT3 (and ends with a lower y*, the greedy log-prob); and after 6 epochs of
DPO sampled responses of extend win over the baseline's, with the interval over seeds
above one half. "held" is for all seeds, "refuted" for none, else "depends".

    python experiments/mitigation.py --out runs/mitigation                     (~30 min)

Found, of three seeds: EXT1 and EXT3 refuted, EXT2 depends; extend wins 0.69 before and
0.49 [0.48, 0.50] after 6 epochs of DPO: refuted (p(y-) is 0.42 already). Instead RPO
wins over DPO 0.71, gated DPO 0.64, IPO 0.55, SimPO 0.50.
"""

__all__: list[str] = []
