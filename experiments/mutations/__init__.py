"""How large is the error that each mistake in the U-Net would cause, and does the suite see it?"""
