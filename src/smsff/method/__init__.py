"""The mathematics of style matching: gradient, spectrum, relevance, timesteps, warm-up, denoising loss."""
