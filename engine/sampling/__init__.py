"""From logits to tokens: processors, position-keyed noise, the argmax."""
