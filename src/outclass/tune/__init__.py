"""Optional rooms that train or generate: tuned prompts, generated outliers. Imported on first use."""
