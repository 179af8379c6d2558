"""The fused LM-HT operator."""
