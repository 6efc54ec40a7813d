"""Is the kernel relatively stable in finetuning, and what do the proxies say of it?

The paper's accumulation argument rests on an assumption (its appendix C): for a fixed
update example the order of the responses by |K|_F changes slowly. For language models
it could only show proxies. Here the norm is exact: along SFT and DPO, for some trained
prompts and the responses of all 12 types to each, of plain gradient descent (K) and of
the run's own optimizer (K_P, with its preconditioner); and beside it the proxies, LBK
of equation 26, LBK and SignDelta as the authors' code computes them.

Exit status 1 only if an identity fails: what the kernel's factors make of a learned
token's residual is the derivative along that token's step; the block norms are those of
the kernel's own columns and of the transposed kernel. Whether the assumption holds and
the proxies are any good (LBK is below the squared norm, but how far?) is what the
experiment is to find out, and is reported with its number.

    python experiments/kernel_stability.py --out runs/stability      (toy world; ~8 min)

Found: identities hold; relative stability does not in general. Between successive times
Spearman of the types' order by norm is 0.91 at its lowest in DPO and 0.79 in SFT
(called stable from 0.9 on), from start to end 0.77 and 0.68; every proxy orders the
types by less than 0.5 with the exact norm.
"""

__all__: list[str] = []
