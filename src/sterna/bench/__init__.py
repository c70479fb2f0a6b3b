"""What the machine can do, what the model needs of it per token, and what a backend makes of that (`sterna bench`)."""
