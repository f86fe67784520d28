"""What is measured: cases, the tasks made of them, and the contenders."""
