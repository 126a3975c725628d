"""What is written down: the custom resources as pydantic models, and the CRDs made from them."""
