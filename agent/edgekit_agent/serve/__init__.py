"""The data plane: HTTP in, tensors through one dispatcher, HTTP out. Runs in the serving process only."""
