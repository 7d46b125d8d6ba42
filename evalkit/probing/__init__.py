"""What several runners train with: pooling, stacked linear heads, schedules, held-out images and the loops."""
