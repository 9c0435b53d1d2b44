"""One tuned model against its base, without a study: what did this adapter or checkpoint change?"""
