r"""The exact empirical NTK between two texts, and what a step on one does to the other.

K(probe, update) of the model's logits, at every pair of scored tokens, exactly and at
the full vocabulary: how large its V x V blocks are, which layers they come from, how
much of them is the head's multiple of the identity, and how far they are from any
multiple of it (the assumption behind the squeezing effect). Then a step of gradient
descent on the update text: the first-order change -rate A K G of every log-prob along
the probe text, the tokens pushed up and down, and the contribution of each update token
to each probe token.

Claims, checked on every run (exit status 1 if one does not hold), are identities, up to
rounding: the factored kernel predicts what a backward and a forward-mode pass predict;
the groups of parameters sum to the whole; the parts of each block sum to it; the
summary of a block is that of the block written out (small vocabularies); the token map
sums to the prediction.

    python experiments/kernel.py --out runs/kernel            (toy world)
    python experiments/kernel.py --model runs/pipeline/sft --out runs/kernel-sft
    python experiments/kernel.py --model runs/hh --update-prompt "Who?" \
        --update-text "I." --probe-prompt "Who?" --probe-text "You."

Found, of the toy base (3 minutes): the head's multiple of the identity is 0.6 % of the
norm, the distance from k I 0.99 of it; all identities hold to 7e-7.
"""

__all__: list[str] = []
