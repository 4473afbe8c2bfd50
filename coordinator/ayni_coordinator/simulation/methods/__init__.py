"""The methods that are compared, one module each; its name is the method's, and `METHOD` the value."""
