"""An independent, slow and exact reference: it shares no line with the product and imports nothing of it.

`gguf` reads files, `dequant` turns their blocks into numbers, `llama` computes a forward pass in float64, and
`model_bin` reads model.bin by docs/model-file.md alone.
"""
