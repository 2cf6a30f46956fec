"""Pure balancers, and the retry rules that go with them."""
