"""GGUF files to test with: headers of well-known models without their weights, a real quantization ladder, and what
llama.cpp itself says of the memory a file needs."""
