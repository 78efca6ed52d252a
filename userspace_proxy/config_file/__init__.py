"""PURE: the text of a configuration file as settings; opens no file, prints and logs nothing.

Entry point: ``parse.parse_config_file``.
"""
