"""Progressive GAN: image generation from 4x4 up."""
