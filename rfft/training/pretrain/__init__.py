"""Training of the embedded models on AdWorld: vae, base, depth, saliency, rfnet, judge, probe."""
