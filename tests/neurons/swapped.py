"""A pytest plugin that puts a neuron of another convention in the place of our own."""

from typing import Any

import theorems.impl
from tests.neurons.foreign import sigmoid

module: Any = theorems.impl
module.eager = sigmoid
