"""A style LoRA from a folder of pictures: the teacher's style, trained before anything is distilled from it."""
