"""Training on ILSVRC folders by the paper's recipe."""
