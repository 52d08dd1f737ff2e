"""The groups of commands below `rfft`; imports stay inside the commands, so that help is quick."""
