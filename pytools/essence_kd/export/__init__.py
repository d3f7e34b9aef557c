"""From a trained model to the files that other programs recognise with, and recognition with them."""
