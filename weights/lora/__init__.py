"""LoRA adapters: read one in the format of PEFT, and add it to the weights of its model (`convert --adapter`)."""
