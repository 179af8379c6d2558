"""Every statement of the paper as tests of anyone's neuron: ``pytest theorems/ --impl MODULE:OBJECT``."""
