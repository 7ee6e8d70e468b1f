"""One diffusion transformer for images, their geometry and their semantics."""
