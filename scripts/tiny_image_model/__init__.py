"""Training of the text-to-image model that the appliance ships: see scripts/train-tiny-image-model --help."""
