"""The console: one page in a browser that shows what the depot does. It only reads."""
