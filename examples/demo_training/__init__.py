"""The parts of the demo model's training: data, tokenizer, model, loop and evaluation.

Nothing here is imported by the package itself: a user of `langchain_rwkv_state` needs only the two
files that this training wrote. Do not change the data's template here alone; the
ids must stay those of the package's template, or the model is asked in a language it never read.
"""
