"""How the embedded demo model is made: corpus, tokenizer, model, training, evaluation."""
