"""The comparison of learning objectives: train each, judge each, and say which ordering holds."""
