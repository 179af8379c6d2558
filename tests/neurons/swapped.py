"""A pytest plugin that puts a neuron of another convention in the place of our own."""

import theorems.impl
from tests.neurons.foreign import sigmoid

theorems.impl.eager = sigmoid  # type: ignore[assignment]
