# SPDX-License-Identifier: Apache-2.0
"""How the page looks, where Gradio's themes can say it; the rest is in `style.css`."""

import gradio as gr

# Gradio's file of the semi-bold weight lacks most letters.
FONT = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))


def page_theme() -> gr.themes.Base:
    """Quiet grays, one accent, and fonts that Gradio ships, so that nothing is loaded from elsewhere."""
    fonts = (FONT, "system-ui", "sans-serif")
    theme = gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=fonts,
        font_mono=fonts,
    )
    return theme.set(
        body_background_fill="*neutral_100",
        body_background_fill_dark="*neutral_950",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary_dark="*neutral_800",
        body_text_color_subdued="*neutral_500",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_title_text_weight="700",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        checkbox_label_background_fill="*neutral_100",
        checkbox_label_background_fill_selected="*primary_50",
        checkbox_label_background_fill_selected_dark="*primary_900",
        checkbox_label_text_color_selected="*primary_700",
        checkbox_label_text_color_selected_dark="*primary_100",
        checkbox_label_background_fill_dark="*neutral_800",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
