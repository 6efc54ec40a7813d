"""The numbers of a page: means over prompts with their errors, and what they sum.

`lines` is about observed prompts, `balance` about the tracked responses.
"""
